"""`datastill.objectives`: see `base.py` for the contract; every other file is one implementation."""

if __name__ != "datastill.objectives":  # a second copy of every class would break isinstance checks
    raise ImportError("import datastill.objectives, not objectives")
