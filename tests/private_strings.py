"""What lies around in a run that is nobody's business, and no upload may hold."""

PERSON = "annabel7"
E_MAIL = "annabel7@mail.example"
PAST_TOKEN = "hf_thePastTokenOfAnnabel"
