"""What the examples are made of: strips of handwritten digits, worked answers, a tiny model that learns both."""

import stages.model  # noqa: F401, before transformers
