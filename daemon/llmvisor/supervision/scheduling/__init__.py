"""One model's scheduler: pure decisions, told what happens and when, giving effects that others carry out."""
