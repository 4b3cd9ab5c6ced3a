from embedding_tasks.cli import main

main()
