"""What covey writes is read by others: transformers, peft, vLLM."""
