"""Nothing in the package is unused, but for names that other libraries call or read."""

from pathlib import Path

import pytest
from vulture import Vulture

ROOT = Path(__file__).parents[2]
# Python, pydantic, pytest and Lightning call what has these.
DECORATORS = ["@model_validator*", "@field_validator*", "@property"]
NAMES = ["on_*"]
# By who uses them.
USED_BY = {
    "Python's imports, and lean_imports.py in their place": {
        *("__class__", "__loader__", "__instancecheck__", "create_module", "_logger", "available"),
        *("_torchdynamo_disable", "graph_break", "trace_rules", "dont_write_bytecode", "tempdir"),
    },
    "Lightning": {
        *("automatic_optimization", "strict_loading", "configure_model", "set_global_rank"),
        *("set_world_size", "setup_distributed", "register_signal_handlers", "_load_universal"),
        "_save_checkpoint",
    },
    "DeepSpeed": {
        *("_copy_recovery_script", "check_grad_overflow", "checkpoint_engine", "save_path"),
    },
    "torch": {"reset_parameters"},
    "transformers, and who reads config.json": {
        *("architectures", "hidden_size", "tie_word_embeddings", "base_model_prefix"),
        *("config_class", "main_input_name"),
    },
    "peft": {
        *("base_model_name_or_path", "inference_mode", "init_lora_weights", "is_loaded_in_4bit"),
    },
    "tokenizers": {"decoder", "pre_tokenizer", "encode_special_tokens"},
    "submitit": {"_make_submission_command", "_make_submission_file_text"},
    "pydantic and PyYAML": {"model_config", "yaml_implicit_resolvers"},
    "lm-evaluation-harness": {"generate_until", "max_batch_size"},
    "http.server": {"do_GET", "log_message", "daemon_threads", "server_version", "sys_version"},
    "whoever calls a protocol or reads an entry of the journal": {"__call__", "moved_from"},
    "us, by its path": {"process_data"},
    "us, by its name in the table of samplers": {"entropy_bound"},
}


@pytest.mark.slow
def test_what_is_unused_is_used_by_others() -> None:
    product = [ROOT / "llada_sft", ROOT / "launch.py", ROOT / "utils"]
    others = [ROOT / "tests", ROOT / "benchmarks", ROOT / "docs"]
    vulture = Vulture(ignore_names=NAMES, ignore_decorators=DECORATORS)
    vulture.scavenge([str(path) for path in (*product, *others)])
    unused = {
        item.name: f"{Path(item.filename).relative_to(ROOT)}:{item.first_lineno}"
        for item in vulture.get_unused_code(min_confidence=60)
        if any(Path(item.filename).is_relative_to(path) for path in product)
    }
    allowed = set().union(*USED_BY.values())
    assert {name: where for name, where in unused.items() if name not in allowed} == {}
    # An exception that is none any more is removed from the list.
    assert unused.keys() >= allowed
