"""The language's text side: parser, syntax tree, formatter and diagnostics."""
