"""What an encode costs here, against the field, in one run: `python -m bench`. Never shipped."""
