"""The embedded default: a task that a tiny LLaDA really learns on two CPU cores in minutes."""
