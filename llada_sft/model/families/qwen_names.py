"""The names of Llama's and Qwen's layers in transformers, which Dream and LLaDA-MoE have."""

from llada_sft.model.families.architecture import BlockNames, Names

NAMES = Names(
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.norm",
    head="lm_head",
    of_block=BlockNames(
        attn_norm="input_layernorm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        attn_out="self_attn.o_proj",
        mlp_norm="post_attention_layernorm",
        gate="mlp.gate_proj",
        up="mlp.up_proj",
        down="mlp.down_proj",
        router="mlp.gate",
        experts="mlp.experts",
        expert_bias="mlp.expert_bias",
        shared_gate="shared_expert.gate_proj",
        shared_up="shared_expert.up_proj",
        shared_down="shared_expert.down_proj",
    ),
)
