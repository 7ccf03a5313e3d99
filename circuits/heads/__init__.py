"""Known types of single heads in any decoder: prompts, scores, null models, causal checks and verdicts."""
