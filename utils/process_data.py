"""Your hook: one record of a .jsonl shard -> one training example.

Change this file, or name another one in the config (`data.hook`); docs/hook.md has four to start
from. It is called once for each row, with the record, the tokenizer of the model and
`data.max_length`. It returns

- a dictionary: `input_ids`, a list of token ids, prompt and response in one, and `response_mask`,
  a list of booleans of the same length that marks the response, the part that is learned;
- a list of such dictionaries, if a row makes several examples;
- or None, to drop the row.

A row for which it raises is a bad one: written to quarantine/ in the run directory, with the line
of this file, and counted (`data.max_bad_fraction`).

The tail of EOS tokens after the response is added by the framework (`data.end`); too long
examples are cut or skipped by it too (`data.on_too_long`). A third list, `loss_weights`, says what
the loss of each token is multiplied by. With `noisy_ids` you corrupt the input yourself: the loss
is then taken at `response_mask`, each token with weight 1.

What the record is: a row of a known format (`data.format`, docs/data.md) arrives as a conversation
that ends with the answer to learn,

    {"messages": [{"role": "user", "content": "What is 2 + 2?"},
                  {"role": "assistant", "content": "4"}]}

or as {"text": "..."}, next to the other fields of the row and its turns: which answer of a dialogue
is learned (`data.multi_turn`) depends on the config and the epoch, and that is settled before the
hook. With `data.format: raw`, and where the rows have no known format, it is the JSON value of the
row.
Python's `random` is seeded for each row and epoch: what you draw from it, a resumed run draws too.

As it is, the hook encodes every known format.
"""

from llada_sft.data.records import encode_record


def process_data(record, tokenizer, max_length):
    return encode_record(record, tokenizer)
