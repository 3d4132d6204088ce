"""The parts of the demo model's training: tokenizer, corpus, network, optimiser, checkpoint, evaluation."""
