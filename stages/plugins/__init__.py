"""Difference masks inside other trainers; each module needs the trainer that it is named after, and no other."""
