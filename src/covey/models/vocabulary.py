"""The tokenizer of the embedded models: one token per character, so that counting letters is never hidden from the model."""

from __future__ import annotations

from typing import Any

SPECIAL = ("<|pad|>", "<|end|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n\t«»"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Append-only: what was rendered of a chat is a prefix of what is rendered when the chat goes on. A role's mark opens each
message; only the assistant closes its own, with the token that also stops generation."""


def build_tokenizer() -> Any:
    """A `transformers` tokenizer over printable ASCII, newline, tab and «»; any other character becomes `<|unknown|>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        unk_token="<|unknown|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"],
        chat_template=TEMPLATE,
        model_max_length=512,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_model(*, width: int, layers: int, heads: int, inner: int, seed: int) -> Any:
    """A Qwen3 causal language model with tied embeddings and new weights: normal with deviation 0.02, by `seed`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(SPECIAL) + len(CHARACTERS),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=512,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        pad_token_id=SPECIAL.index("<|pad|>"),
        eos_token_id=SPECIAL.index("<|end|>"),
        bos_token_id=None,
        use_sliding_window=False,
        initializer_range=0.02,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config.do_sample = True
    return model
