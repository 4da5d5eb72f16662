"""What a person or a program is shown of findings: typed rows in, text and JSON out."""
