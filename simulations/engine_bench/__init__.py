"""A race of engines: who trains a round of federated averaging in how many seconds.

``workloads`` says what is trained, ``contestant`` who trains it and how they race.
Every contestant is a child process, see ``child``. What runs in it are the modules
named ``run_*`` and what only they import: nothing else here imports Flower, Ray or pfl.
"""
