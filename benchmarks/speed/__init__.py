"""Yardsticks that timings are compared with."""
