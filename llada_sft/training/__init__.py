"""THE LOOP.

One Lightning batch is one optimizer step: all its micro-batches, the noise, and the counts that the
loss is divided by, agreed between the ranks beforehand.

    trainer.py        config -> Trainer -> fit: the whole of a run on one rank, in order
    begin.py          the ranks meet, compare their nodes, and find out what is trained
    module.py         the LightningModule: micro-batches through the engine, then one step
    strategy.py       DeepSpeed ZeRO-3 on CUDA and on CPU
    build_network.py  the model section -> the network
    build_data.py     the data section -> this rank's rows and validation batches
    ranks.py          a rank's device, and the process group
    nodes/            the nodes are compared at the start, and the slowest rank is named
    host.py           what the job gives the training: signals, the journal, the watchdog
    consensus.py      the one small collective per step: counts, "no more rows", "stop", "failed"
    feed.py           local steps -> steps that all ranks have agreed on
    noising.py        a step -> noisy micro-batches with the weight of each masked token
    masks/            each example twice, and noise levels drawn by losses
    validation/       the same rows with the same masks each time
    nonfinite.py      a loss that is NaN or infinite: the step is not made, and its rows are named
    export.py         a checkpoint -> a model directory
    schedule/         the learning rate of a step, and the plan of the whole training
    checkpoint/       saving, verifying and resuming
    callbacks/        between steps: checkpoints, progress, counts of rows, signals, failures
    log/              numbers of a run, and what the training records in the journal
"""
