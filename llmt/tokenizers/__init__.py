"""text -> token ids.

base                                     the interface, and what works on top of it
fast, bpe, wordpiece                     the types that llmt trains
pretokenize, table, count, workers       text -> words and how often each occurs
likelihood, segments, hubs, gain         words -> WordPiece merges; compiled, slots, joining: the same through numba
chunks, ranks, bulk                      texts -> ids of a whole corpus
files, validate, trial, load             directory <-> tokenizer, nothing in it trusted
huggingface, foreign, sentencepiece      tokenizers of others
train, corpus, heldout, gate, build      sources -> a directory that was checked
inspect, spans, scripts, vocabulary,     tokenizer, text -> what the one makes of the other
history, compare, sweep, inspection
"""
