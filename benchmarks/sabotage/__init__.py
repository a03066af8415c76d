"""The sabotage suite: does the blessing stop bad models, and let healthy ones pass?"""
