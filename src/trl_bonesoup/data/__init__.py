"""Prompts for training and evaluation, and examples for supervised fine-tuning, out of public data sets."""
