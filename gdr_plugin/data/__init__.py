"""Reading data: files and data sets as rows, rows as prompts, responses and preference items."""
