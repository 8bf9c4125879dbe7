"""The front door of each modality: data in, a good summary out, nothing else to decide."""
