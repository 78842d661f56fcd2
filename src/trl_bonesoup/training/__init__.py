"""Seeking: PPO on weighted rewards (Bone Soups, Section 3.2), one backbone or all of them."""
