"""Models and tokenizers in the files of other libraries."""
