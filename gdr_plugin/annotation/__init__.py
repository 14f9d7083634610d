"""Preference data sets from prompts: `gdr annotate`. Windows of a resumable run, pairs picked from scores, files."""
