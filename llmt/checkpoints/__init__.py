"""weights and run state <-> directory.

layout     every file and folder name
atomic     bytes -> files and directories that are whole or absent
manifest   directory -> is every byte still what was written?
lock       one process per output directory
sharding   tensor sizes -> which file holds which tensor
header     safetensors header <-> names, dtypes, shapes
weights    tensors <-> safetensors files
pickled    .pt, .pth, .bin -> tensors, with nothing in the file executed
convert    .pt, .pth, .bin -> safetensors
store      step -> checkpoint directory -> newest whole step
runs       folder of runs -> finished runs -> model directory
"""
