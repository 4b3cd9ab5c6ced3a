"""The proof that the store stays in step: a storm, then a verdict.

    scene.py     one seed's world: table, keys, labels, strategy, model
    servers.py   two PostgreSQL servers that can be killed
    writers.py   the application, which writes as applications do
    tasks.py     two schedulers that run the same use case, each task a process
    people.py    backfills, and another recipe in the file
    faults.py    the adversary
    verdict.py   the store beside a fresh full run, and beside the source itself
    mutants.py   builds broken on purpose, which the verdict must find
    storm.py     all of it together

`make chaos SEED=1-20 DURATION=20`, or `python -m tests.chaos --help`.
"""
