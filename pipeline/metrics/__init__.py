"""Measures of labels against truth: pure counting, and accumulators that add up."""
