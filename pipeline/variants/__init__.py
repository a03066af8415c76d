"""Smaller forms of a blessed model: each converted, judged and published on its own."""
