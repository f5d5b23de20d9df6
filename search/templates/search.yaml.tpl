# The search of $name.py: as it is, a minute or so on two cores. Start or resume it: slimfront launch $name.yaml
# A key that is left out has its default; `slimfront schema config` lists them all.

study: $name # another name starts another search, in the same store
workload: $name.py:workload # the file beside this one, and the function in it

space:
  # 8 bits are nearly free; at 2 to 4 it matters which layer gets them.
  bits: [2, 3, 4, 5, 6, 7, 8]
  # 0.0 leaves a layer whole; even steps give the sampler and the dashboard a plain axis.
  ratios: [0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.96]
  # More ways to get smaller: weights: [uniform, codebook], channels: [0.25, 0.5], blocks: true
  exclude: [] # layers to leave as they are, as globs: ["0", "head.*"]

distillation:
  steps: [40] # promising candidates are trained for 40 batches of 64: about 3 passes over the 797 images

sampler:
  uniform: 7 # the policies to beat: every layer alike, at each of the 7 bit widths
  predicted: 8 # a third of the trials goes to what the layers' rounding errors predict, the rest to the sampler

budget:
  trials: 24 # enough to see it work; 120 find a better front

workers: 2 # two cores are what every machine has; more workers find the same front, sooner
seed: 0 # any number will do; the same one gives the same search
