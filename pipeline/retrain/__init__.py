"""Automated retraining: spans, the policy that says when, and the loop that does it."""
