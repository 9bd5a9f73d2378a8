"""Prompts -> answers as text: `llada-sft sample` and `llada-sft chat`.

options.py         the samplers' settings as options of a command
questions.py       a file of prompts or records -> what is asked, without torch
answerer.py        a model, its tokenizer and a sampler: turns -> ids -> answers -> text
answers_file.py    the answers of a file: kept as they come, put together at the end
sample.py          `llada-sft sample`: prompts of the command line, or a file, on several ranks
conversation.py    the turns of a chat, and what fits into the model
screen.py          the answer of a chat while it is uncovered
chat.py            `llada-sft chat`
"""
