"""text -> documents -> token ids -> batches.

documents, sources, readers, builtin   text -> `Iterator[Document]`; neither numpy nor torch
split, audit                           which documents are held out; what was read, in numbers
shards, prepare                        documents -> token ids in memory-mapped files
order, batch, loader                   token ids -> `Iterator[Batch]`
"""
