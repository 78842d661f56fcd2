"""The three rewards of Long Form QA, from the models that FineGrainedRLHF publishes; put their folders here."""

from trl_bonesoup.rewards.segments import qa_completeness, qa_factuality, qa_relevance

MODELS = "FineGrainedRLHF/tasks/qa_feedback/model_outputs"

factuality = qa_factuality(f"{MODELS}/fact_rm", prompt_column="text")
relevance = qa_relevance(f"{MODELS}/rel_rm")
completeness = qa_completeness(f"{MODELS}/comp_rm", prompt_column="text")
