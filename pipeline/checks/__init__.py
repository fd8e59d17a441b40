"""What validation looks for; `pipeline/validation.py` puts it together."""
