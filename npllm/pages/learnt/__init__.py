"""What a language model has learnt: measures of its inside, each with what chance
gives."""
