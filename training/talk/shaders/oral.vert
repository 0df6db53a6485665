#version 330
#include "pose.glsl"

in vec3 place;
in vec3 normal;
in vec3 kind;  // 0 tooth, 1 gum, 2 tongue; height on a tooth from root to edge; z on the base mesh

out vec3 at;
out vec3 facing;
out vec4 in_light;
out vec3 what;

void main() {
    at = posed(place, 1.0);
    facing = posed_normal(normal, 1.0);
    what = kind;
    in_light = light_projection * vec4(at, 1.0);
    gl_Position = view_projection * vec4(at, 1.0);
}
