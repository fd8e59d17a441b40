"""Where files lie: folders, archives, buckets and web servers; `pipeline/files.py` opens them."""
