"""The embedded examples, as modules: `python -m data.digits.build`."""
