"""Servers that tests start on 127.0.0.1: they check what they are sent, keep state, and run pipelines for real."""
