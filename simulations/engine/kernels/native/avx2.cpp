// Built with -mavx2 -mfma: see setup.py.
#include "train.hpp"
