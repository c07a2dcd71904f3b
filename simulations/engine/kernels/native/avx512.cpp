// Built with -mavx512f and others: see setup.py.
#include "train.hpp"
