"""THE LOOP.

One Lightning batch is one optimizer step: all its micro-batches, the noise, and the counts that the
loss is divided by, agreed between the ranks beforehand.

    ranks.py        a rank's device, and the process group
    consensus.py    the one small collective per step: counts, "no more rows", "stop", "failed"
    feed.py         local steps -> steps that all ranks have agreed on
    noising.py      a step -> noisy micro-batches with the weight of each masked token
    interval.py     the numbers of the log that cover several steps
    module.py       the LightningModule: micro-batches through the engine, then one step
    host.py         what the job gives the training: told to stop, the journal, the watchdog
    notes.py        what the training tells the journal
    nonfinite.py    a loss that is NaN or infinite: the step is not made, and its rows are named
    strategy.py     DeepSpeed ZeRO-3 on CUDA and on CPU
    schedule.py     the learning rate of a step, from how much of the training is done
    plan.py         how long the training is: kept in checkpoints, planned again on changes
    network.py      the model section -> the network
    checkpoints.py  partial, verified, renamed; the newest complete one wins
    manifest.py     checkpoint.json: sizes, checksums, and a checksum of its own
    checksums.py    taken while a file is written, compared when it is read
    writing.py      a rank's shards, so that no rank waits for another one whose disk is full
    resume.py       which checkpoint a run resumes from: all ranks together
    verify.py       whether a checkpoint is what was written, before it is loaded
    universal.py    a checkpoint for another number of ranks, by universal_process.py
    record_format.py the format of the rows, told by the first rank for all
    changed.py      shards that changed or are gone since the checkpoint: refused, or restarted
    half_done.py    rows that start again because what makes their examples changed
    export.py       a checkpoint -> a model directory
    callbacks/      between steps: checkpoints, progress, counts of rows, signals, failures
    metrics_csv.py  the log of a run, continued by every attempt
    wandb_log.py    the same to Weights & Biases, which can neither end nor delay a training
    quiet.py        warnings of libraries that say nothing about a run
    trainer.py      config -> Trainer -> fit
"""
