"""The presets: named sets of settings, each with the reason for its values. What a preset leaves out is the
default of `settings.Settings`."""

from __future__ import annotations

# ruff: noqa: C408 - as the command line writes them

# The competition's protocol: first order, 5 steps, 32 tasks, 15 query images; everything else is the default.
# Inner rate 0.1 of its article; 0.04 for 5-way 5-shot, as its published weights need.
_COMPETITION = dict(order=1, inner_steps=5, inner_lr=0.1, meta_batch=32, iterations=10000, val_every=1000)

# Finn et al. 2017: exact gradient, strided network, rotations, 60,000 iterations; its random division of 1200
# and 423 classes was not published, `vinyals` is the nearest list. Its code sums the inner loss over the
# shots' classes, so its alpha of 0.4 (5-way) and 0.1 (20-way) are both 2.0 on the mean loss used here.
_PAPER = dict(
    architecture="stride",
    rotations=True,
    split_rule="vinyals",
    order=2,
    inner_lr=2.0,
    iterations=60000,
    meta_lr=0.001,
)
_PAPER_5WAY = dict(_PAPER, n_way=5, inner_steps=1, test_inner_steps=3, meta_batch=32)
_PAPER_20WAY = dict(_PAPER, n_way=20, inner_steps=5, test_inner_steps=5, meta_batch=16)

# What the literature adds to MAML: the exact gradient through one inner step of learned rates and a cosine
# schedule (Antoniou et al. 2019), rotations (Santoro et al. 2016), distorted copies (after Koch et al. 2015).
# Small meta-batches, and few query images where there are many classes: more steps in the time that a CPU
# has. All begin with 20-way 1-shot: more classes in training than in testing, as Snell et al. (2017) do for
# prototypical networks. docs/results.md has what each brings.
_BEST = dict(
    order=2,
    inner_steps=1,
    inner_lr=0.1,
    learn_inner_lr=True,
    rotations=True,
    distortions=8,
    meta_lr_schedule="cosine",
)
_BEST_5WAY = dict(
    _BEST,
    n_way=5,
    k_query=15,
    start_from="20way-1shot",
    start_inner_lr_factor=0.25,  # an image counts for four times as much in the mean loss of 5 classes
    meta_batch=8,
    meta_lr=0.0005,
    val_episodes=500,
)
_BEST_20WAY = dict(_BEST, n_way=20, k_query=5, meta_batch=4, val_episodes=100, test_episodes=600)

# Finn et al. 2017, section 5.2, "non-convolutional": the paper gives 89.7 +- 1.1 and 97.5 +- 0.6. One step of
# learned rates, small meta-batches and a cosine schedule, as in `_BEST`: a perceptron's step costs little.
_MLP = dict(
    network="mlp",
    n_way=5,
    order=2,
    inner_steps=1,
    inner_lr=0.4,
    learn_inner_lr=True,
    rotations=True,
    distortions=4,
    meta_batch=16,
    meta_lr_schedule="cosine",
    val_every=2500,
    log_every=100,
    checkpoint_every=1000,
)

# Snell et al. 2017, section 3.1: 60 classes in a training episode with 5 query images each, Adam with rate
# 0.001, rotations. They halve the rate every 2,000 episodes; here it falls as a cosine. Two episodes a step,
# one for each of two cores.
_PROTOTYPICAL = dict(
    learner="prototypical",
    train_n_way=60,
    k_query=5,
    rotations=True,
    meta_batch=2,
    meta_lr=0.001,
    meta_lr_schedule="cosine",
    iterations=10000,
)

# One run for all four tasks: the network knows nothing of their number of classes, and a new head is fitted
# to each. It is validated, and tested at its end, on the hardest. The head is that of training (Chen et al.
# 2019: linear in Baseline, cosine in Baseline++); the body stays. Rotations are further classes (Santoro et
# al. 2016). Two batches a step, one for each of two cores. Fitting takes 100 steps of 0.01, the rate of Chen
# et al.'s code.
_FINE_TUNING = dict(
    learner="fine-tuning",
    adapted="head",
    test_inner_steps=100,
    inner_lr=0.01,
    n_way=20,
    k_shot=1,
    rotations=True,
    batch_size=64,
    meta_batch=2,
    meta_lr=0.001,
    meta_lr_schedule="cosine",
    iterations=30000,
    val_every=1000,
    val_episodes=100,
    test_episodes=600,
    log_every=100,
    checkpoint_every=1000,
)
# Nichol et al. 2018, by the commands that the README of their code (openai/supervised-reptile) gives for the
# paper, the same for 1-shot and 5-shot: 10 training images a class. They have 100,000 and, of 20 classes,
# 200,000 meta-iterations of 3 to 10 tasks. Here 20-way has fewer of both, which a CPU's core computes in an
# hour and a half, and 5-way goes on from its weights, as the `best-*` presets do, at a lower rate: with 1 it
# was best after a third of the meta-iterations, and no better than from weights of half the training.
_REPTILE = dict(
    learner="reptile",
    inner_optimizer="adam",
    rotations=True,
    meta_lr=1.0,
    meta_lr_schedule="linear",
    test_inner_steps=50,
    log_every=100,
    checkpoint_every=1000,
)
_REPTILE_5WAY = dict(
    _REPTILE,
    n_way=5,
    inner_steps=5,
    inner_lr=0.001,
    inner_batch=10,
    test_inner_batch=5,
    start_from="reptile-20way-1shot",
    meta_lr=0.3,
    meta_batch=6,
    iterations=6000,
)
_REPTILE_20WAY = dict(
    _REPTILE,
    n_way=20,
    inner_steps=10,
    inner_lr=0.0005,
    inner_batch=20,
    test_inner_batch=10,
    meta_batch=2,
    iterations=28000,
    val_every=4000,
    val_episodes=100,
    test_episodes=600,
)

# Raghu et al. 2020, who take MAML's own numbers. As `_BEST`, but with several inner steps, which cost little
# where the head alone is adapted, and a larger rate: the head has to move further by itself. All begin with
# 20-way 1-shot, as the `best-*` presets do.
_ANIL = dict(
    learner="anil",
    order=2,
    inner_steps=5,
    inner_lr=0.4,
    learn_inner_lr=True,
    rotations=True,
    distortions=8,
    meta_lr_schedule="cosine",
    log_every=100,
)
_ANIL_5WAY = dict(_ANIL, n_way=5, k_query=15, meta_batch=8, val_episodes=500)
_ANIL_20WAY = dict(_ANIL, n_way=20, k_query=5, meta_batch=4, val_episodes=100, test_episodes=600)
_FROM_ANIL = dict(start_from="anil-20way-1shot", meta_lr=0.0005)
# As in `_BEST_5WAY`. Without the factor (`--start-inner-lr-factor 1`) 5-way 1-shot was at 91.87 % +- 0.80 %
# on validation classes after 500 meta-iterations and at 94.44 % +- 0.61 % after 1,000; with it at 99.15 % +-
# 0.23 % after 500.
_FROM_ANIL_5WAY = dict(_FROM_ANIL, start_inner_lr_factor=0.25)

# Santoro et al. 2016 take 100,000 meta-iterations of 16 episodes, with rotations. Few query images: more
# tasks in the time that a CPU has. Eight for each of two processes, as batch norm takes them together.
_LSTM = dict(
    learner="lstm",
    n_way=5,
    k_query=3,
    rotations=True,
    meta_batch=16,
    meta_lr=0.002,
    meta_lr_schedule="cosine",
    val_every=2500,
    log_every=100,
    checkpoint_every=1000,
)

# Lake et al. 2015: 20 classes of one alphabet that training has not seen, and each query image by itself, so
# that no statistics of the query set help. Every other episode of training is of one alphabet, turned as a
# whole, for what tells like characters apart; the others are of all, because there are few alphabets.
_LAKE = dict(
    n_way=20,
    k_shot=1,
    split_rule="lake",
    within_alphabet="mixed",
    rotations=True,
    distortions=8,
    meta_lr_schedule="cosine",
    iterations=20000,
    val_every=2000,
    val_episodes=100,
    test_episodes=600,
    test_within_alphabet=True,
)

PRESETS = {
    # Two to three minutes on two CPU cores with no download: narrow network, few episodes, exact gradient
    # because it learns faster per episode.
    "quickstart": dict(
        dataset="synthetic",
        width=32,
        k_query=5,
        order=2,
        inner_steps=3,
        inner_lr=0.2,
        meta_batch=8,
        iterations=300,
        meta_lr=0.003,
        meta_lr_schedule="cosine",
        val_every=100,
        val_episodes=50,
        test_episodes=500,
        checkpoint_every=50,
    ),
    "omniglot-5way-1shot": dict(_COMPETITION, n_way=5, k_shot=1),
    "omniglot-5way-5shot": dict(_COMPETITION, n_way=5, k_shot=5, inner_lr=0.04),
    # 16 tasks: the competition's memory allowed no more.
    "omniglot-20way-1shot": dict(_COMPETITION, n_way=20, k_shot=1, meta_batch=16),
    "omniglot-20way-5shot": dict(_COMPETITION, n_way=20, k_shot=5),
    "best-20way-1shot": dict(_BEST_20WAY, k_shot=1, iterations=12000),
    # Among 20 classes, characters that are not turned are told apart better without rotations in the end:
    # docs/results.md.
    "best-20way-5shot": dict(
        _BEST_20WAY,
        k_shot=5,
        start_from="20way-1shot",
        rotations=False,
        meta_lr=0.0005,
        iterations=1500,
        val_every=250,
    ),
    "best-5way-1shot": dict(_BEST_5WAY, k_shot=1, iterations=2500, val_every=250),
    "best-5way-5shot": dict(_BEST_5WAY, k_shot=5, iterations=800, val_every=100),
    # One query image a class in training, so that its statistics are like those of the support set, by which
    # the test goes.
    "lake-20way-1shot": dict({**_BEST, **_LAKE}, k_query=1, meta_batch=8, test_statistics="support"),
    # Needs no statistics of an episode in the test: the population's.
    "lake-prototypical": dict(_LAKE, learner="prototypical", k_query=5, meta_batch=4),
    # As many query as support images in training, as in the paper.
    "paper-5way-1shot": dict(_PAPER_5WAY, k_shot=1, k_query=1),
    "paper-5way-5shot": dict(_PAPER_5WAY, k_shot=5, k_query=5),
    "paper-20way-1shot": dict(_PAPER_20WAY, k_shot=1, k_query=1),
    "paper-20way-5shot": dict(_PAPER_20WAY, k_shot=5, k_query=5),
    "prototypical-5way-1shot": dict(_PROTOTYPICAL, n_way=5, k_shot=1),
    "prototypical-5way-5shot": dict(_PROTOTYPICAL, n_way=5, k_shot=5),
    "prototypical-20way-1shot": dict(_PROTOTYPICAL, n_way=20, k_shot=1, test_episodes=600),
    "prototypical-20way-5shot": dict(_PROTOTYPICAL, n_way=20, k_shot=5, test_episodes=600),
    "anil-20way-1shot": dict(_ANIL_20WAY, k_shot=1, iterations=20000, val_every=2000),
    "anil-20way-5shot": dict(_ANIL_20WAY, **_FROM_ANIL, k_shot=5, iterations=3000, val_every=500),
    "anil-5way-1shot": dict(_ANIL_5WAY, **_FROM_ANIL_5WAY, k_shot=1, iterations=3000, val_every=500),
    "anil-5way-5shot": dict(_ANIL_5WAY, **_FROM_ANIL_5WAY, k_shot=5, iterations=1500, val_every=250),
    "reptile-5way-1shot": dict(_REPTILE_5WAY, k_shot=1, k_query=9),
    "reptile-5way-5shot": dict(_REPTILE_5WAY, k_shot=5, k_query=5),
    "reptile-20way-1shot": dict(_REPTILE_20WAY, k_shot=1, k_query=9),
    "reptile-20way-5shot": dict(_REPTILE_20WAY, k_shot=5, k_query=5),
    "lstm-5way-1shot": dict(_LSTM, k_shot=1, iterations=30000),
    "lstm-5way-5shot": dict(
        _LSTM, k_shot=5, start_from="lstm-5way-1shot", meta_lr=0.001, iterations=5000, val_every=1000
    ),
    "fine-tuning": dict(_FINE_TUNING, head="linear"),
    "fine-tuning-cosine": dict(_FINE_TUNING, head="cosine"),
    "mlp-5way-1shot": dict(_MLP, k_shot=1, k_query=5, iterations=20000),
    "mlp-5way-5shot": dict(
        _MLP, k_shot=5, k_query=5, start_from="mlp-5way-1shot", iterations=8000, val_every=1000
    ),
    # Finn et al. 2017, section 5.3, for miniImageNet, on a folder of the user's: exact gradient, 32 filters,
    # 5 steps and 10 in testing, 15 query images. Its code sums the inner loss over the shots' classes, so
    # that its alpha of 0.01 is 0.05 on the mean loss used here; it also keeps each number of the
    # meta-gradient within +-10.
    "folder-5way-1shot": dict(
        dataset="folder",
        image_size=84,
        in_channels=3,
        width=32,
        n_way=5,
        k_shot=1,
        k_query=15,
        order=2,
        inner_steps=5,
        inner_lr=0.05,
        test_inner_steps=10,
        meta_batch=4,
        iterations=60000,
        val_every=1000,
        val_episodes=200,
        test_episodes=600,
    ),
    # Finn et al. 2017, section 5.1, where training has 70,000 meta-iterations: about three minutes on two
    # cores.
    "sinusoid": dict(
        dataset="sinusoid",
        network="mlp",
        hidden="40,40",
        batch_norm=False,
        k_shot=10,
        k_query=10,
        test_k_query=100,
        order=2,
        inner_steps=1,
        inner_lr=0.01,
        test_inner_steps=10,
        meta_batch=25,
        iterations=25000,
        val_every=2500,
        val_episodes=200,
        log_every=100,
        checkpoint_every=1000,
        processes=1,
    ),
}
