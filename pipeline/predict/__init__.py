"""From pixels to labels on one device; `pipeline/segmenter.py` feeds it and takes its answers."""
