"""What the demo's model is asked: topics to train on, and others to measure on."""

from __future__ import annotations

TRAINING_TOPICS = """
the sea; a long train journey; learning to cook; city life; winter; an old friend; working from home; owning a dog;
rainy days; a first job; mountains; coffee; moving house; public libraries; growing vegetables; night shifts;
school exams; a broken phone; camping; neighbours; airports; family dinners; cycling to work; losing a game;
museums; waking up early; social media; a job interview; spring; traffic jams; reading novels; birthdays;
a football match; learning the piano; street markets; a power cut; the moon; old photographs; swimming; hospitals;
a lost key; autumn leaves; writing letters; bus rides; bread; small towns; thunderstorms; knitting; a new teacher;
deserts; video games; bees; a noisy office; islands; chess; homework; bridges; a wedding; rivers; running a shop;
foggy mornings; volunteering; a slow computer; the theatre
"""

TEST_TOPICS = """
a summer holiday; the dentist; a vegetable soup; grandparents; deadlines; a walk in the forest; sharing a flat;
snow; an argument; a long queue; tea; the night sky; a bad cold; painting a room; a farm; exam results;
a train station; music lessons; a cat; gardens; a missed bus; a first day at school; lakes; an old car
"""


def conversations(topics: str) -> list[list[dict[str, str]]]:
    """Return one conversation per topic, which asks the model to write about it."""
    return [
        [
            {"role": "system", "content": "You are a writer."},
            {"role": "user", "content": f"Write about {' '.join(topic.split())}."},
        ]
        for topic in topics.split(";")
        if topic.strip()
    ]
