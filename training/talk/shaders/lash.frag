#version 330

in vec2 on_lid;

uniform vec3 lash_colour;
uniform float density;

out vec4 colour;

void main() {
    float hairs = 0.5 + 0.5 * sin(on_lid.x * 150.0 + 4.0 * sin(on_lid.x * 17.0));
    float alpha = (1.0 - on_lid.y * on_lid.y) * mix(1.0, smoothstep(0.2, 0.7, hairs), on_lid.y * 0.9);
    colour = vec4(lash_colour, alpha * density);
}
