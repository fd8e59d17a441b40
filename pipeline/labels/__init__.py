"""Labels made from labels: by look-up table, from masks to objects and back, and counted."""
