"""The claim file: what is said of a conversion, down to one claim for each target leaf."""
