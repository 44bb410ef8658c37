"""Admits requests, reads prompts, scores clips and steps continuations; knows no HTTP."""
