"""THE LOOP.

One Lightning batch is one optimizer step: all its micro-batches, the noise, and the counts that the
loss is divided by, agreed between the ranks beforehand.

    ranks.py        a rank's device, and the process group
    consensus.py    the one small all-reduce per step: counts, "no more rows", "stop", "failed"
    feed.py         local steps -> noisy micro-batches with the weight of each masked token
    interval.py     the numbers of the log that cover several steps
    module.py       the LightningModule: micro-batches through the engine, then one step
    nonfinite.py    a loss that is NaN or infinite: the step is not made, and its rows are named
    strategy.py     DeepSpeed ZeRO-3 on CUDA and on CPU
    schedule.py     the learning rate as a function of the step
    network.py      the model section -> the network
    checkpoints.py  partial, verified, renamed; the newest complete one wins
    changed.py      shards that changed or are gone since the checkpoint: refused, or begun anew
    export.py       a checkpoint -> a model directory
    metrics_csv.py  the log of a run, continued by every attempt
    trainer.py      config -> Trainer -> fit
"""
