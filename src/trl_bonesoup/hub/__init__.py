"""The Hugging Face Hub: cards that say what a soup is and what was measured of it."""
