"""The fast way to run a mixture, with the results of the plain one.

`tracing` says once what each candidate is made of, `candidates` runs and mixes them, `segment`, `convolution` and
`pooling` hold the work inside a candidate, `weighted_sum` mixes, and `shared` keeps what several edges need.
"""
